"""Files on disk ↔ `Adapter`. One file a format."""
