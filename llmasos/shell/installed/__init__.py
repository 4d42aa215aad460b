"""Apps that are installed: where they are kept, and how they run in a process of their own."""
