"""Third-party weights: download, read without executing code, convert."""
