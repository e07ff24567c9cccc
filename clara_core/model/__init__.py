"""The shared decoder: prompts as token ids, adapters of the three roles, attention, KV memory, devices."""
