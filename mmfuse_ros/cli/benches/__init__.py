"""What `mmfuse bench` measures."""
