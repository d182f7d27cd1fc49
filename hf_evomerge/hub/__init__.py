"""The Hub: records and cards of models, publishing them with their Spaces, and building a published
model again."""
