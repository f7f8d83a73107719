"""PyTorch: the engine of today's machines. Nothing else imports torch; this file does not either."""
