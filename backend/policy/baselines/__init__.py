"""The policies that BROS is compared with."""
