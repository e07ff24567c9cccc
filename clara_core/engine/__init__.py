"""The engine: one loaded model that compresses, reasons and answers for many callers at once."""
