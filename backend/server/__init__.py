"""The engine process: socket server, intake, outbox, assembly, metrics, snapshots."""
