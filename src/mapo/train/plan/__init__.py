"""What a training needs of memory and disk, known before it begins."""
