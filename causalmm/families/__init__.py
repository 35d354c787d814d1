"""What a checkpoint is: its family, its files, loading."""
