"""What an adapter's versions are to each other, and which of them is trained from and served."""
