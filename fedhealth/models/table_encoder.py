"""An encoder of one table modality. Called by `multimodal`."""

import torch
from torch import Tensor, nn


class TableEncoder(nn.Module):
    """Two linear layers over features and missing-value indicators.

    A missing value is zero in its features; its indicator lets the model tell it from a true zero, and learn
    from the fact that it is missing.

    Args:
        num_features: F, see `fedhealth.data.tables.TableEncoder`.
        num_columns: C, the number of missing-value indicators.
        hidden_size: units of the hidden layer.
        embedding_size: E.
    """

    def __init__(
        self, num_features: int, num_columns: int, *, hidden_size: int, embedding_size: int
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features + num_columns, hidden_size)
        self.projection = nn.Linear(hidden_size, embedding_size)

    def forward(self, features_BF: Tensor, missing_BC: Tensor) -> Tensor:  # noqa: N803 - shape suffix
        """Embeddings (B, E) from features (B, F) and indicators (B, C), float32."""
        inputs = torch.cat([features_BF, missing_BC], dim=1)
        embeddings_BE: Tensor = self.projection(torch.relu(self.hidden(inputs)))  # noqa: N806
        return embeddings_BE
