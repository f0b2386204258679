"""Workers for NVIDIA Dynamo: each joins its frontend with one engine process of ours. `docs/many.md` says when."""
