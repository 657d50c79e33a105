"""The study of prepared text: what a model gains on clean text when the pages of a crawl are prepared first."""
