"""Texts of examples: conversations, templates, and what a template uses. Imports what data may import."""
