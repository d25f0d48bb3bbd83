"""What programs write about a picture into its file, a module for each family of them."""
