"""Text on its way into a model and out again: chats, token ids, batches, what was written."""
