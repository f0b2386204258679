"""Messages between stub and engine, and the names of fields and metrics on the wire."""
