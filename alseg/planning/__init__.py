"""Settings that follow from the images: facts, rules, and plan.yaml."""
