"""Steps on images, which are records with the column `path`: damaged, tiny and alike ones."""
