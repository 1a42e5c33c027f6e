"""Language models and encoders: loading, prompts, scoring, generating, tuning."""
