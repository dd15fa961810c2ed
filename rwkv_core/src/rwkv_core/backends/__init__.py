"""What a backend is: its operations, its description, and what it keeps on the device."""
