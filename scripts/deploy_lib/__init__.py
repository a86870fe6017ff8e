"""`scripts/check-deploy`: checks the files of examples/webhook_bridge/deploy."""
