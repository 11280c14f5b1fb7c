"""What is raced: a module each, with its cases and how this project does the work."""
