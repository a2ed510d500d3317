"""The GPT model, its initial values and its pipeline form."""
