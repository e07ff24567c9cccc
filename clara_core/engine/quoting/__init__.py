"""Answers in the words of their documents: where a quotation may begin and end, and what the question tells of it."""
