"""The report: one HTML page per domain, from numbers and images; no network runs here."""
