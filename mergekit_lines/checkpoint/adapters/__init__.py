"""LoRA adapters: what they change, tensor by tensor."""
