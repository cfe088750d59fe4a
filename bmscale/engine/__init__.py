"""The only folder that knows accelerate or deepspeed: process group, ZeRO, one optimizer step, state by name."""
