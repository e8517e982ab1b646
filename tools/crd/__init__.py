"""From the models to CustomResourceDefinitions and docs/conditions.md."""
