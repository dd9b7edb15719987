"""rqa_ray: contrastive fine-tuning of retrievers, scaled on Ray."""

import rqa_ray.ray_environment  # noqa: F401  (before anything here imports Ray)
