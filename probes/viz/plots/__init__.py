"""Pictures of one kind of data each."""
