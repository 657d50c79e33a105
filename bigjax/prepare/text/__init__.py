"""Steps on text, one file each: repair, extraction, language, quality filters, duplicates, decontamination, masking."""
