from dataclasses import replace
from typing import ClassVar

import pytest

from fedhealth.contracts.data import Column, DataContract, SplitPlan, TableModality, VolumeModality
from fedhealth.models.logistic_fusion import build_logistic_fusion
from fedhealth.models.multimodal import build_multimodal
from fedhealth.models.unet import build_unet
from fedhealth.testing.model_contract import ModelContract, example_contract


class TestMultimodal(ModelContract):
    build = staticmethod(build_multimodal)


class TestMultimodalFromPhantoms(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"image_weights": "phantom"}


class TestMultimodalWithTwoTablesAndTwoOutputs(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"embedding_size": 8, "table_hidden_size": 4}
    num_outputs = 2

    @pytest.fixture
    def contract(self) -> DataContract:
        def table(name: str) -> TableModality:
            return TableModality(
                name=name,
                columns=(Column(name=f"{name}_a", dtype="float", minimum=0.0, maximum=1.0),),
            )

        return DataContract(
            patient_id_column="patient_id",
            label_column="label",
            label_codes=(0, 1),
            # Names that are attributes of torch's own containers must do no harm.
            modalities=(table("keys"), table("values")),
            split=SplitPlan(train=0.7, validation=0.1, test=0.2, seed=0),
        )


class TestLogisticFusion(ModelContract):
    build = staticmethod(build_logistic_fusion)
    begins_at_zero = True


class TestLogisticFusionOfSums(ModelContract):
    build = staticmethod(build_logistic_fusion)
    begins_at_zero = True
    options: ClassVar = {"products": "none"}
    num_outputs = 2


class TestConcatenation(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"fusion": "concatenation"}


class TestProduct(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"fusion": "product"}


class TestCrossAttention(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"fusion": "cross_attention"}


class TestResNet(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"image_encoder": "resnet10"}


class TestDenseNet(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"image_encoder": "densenet_small"}


class TestVisionTransformer(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"image_encoder": "vit_tiny"}


class _Images(ModelContract):
    """A 2D image beside the table."""

    build = staticmethod(build_multimodal)

    @pytest.fixture
    def contract(self) -> DataContract:
        whole = example_contract()
        image = VolumeModality(name="xray", shape=(16, 24, 1), spacing_mm=(1.0, 1.0, 1.0))
        return replace(whole, modalities=(*whole.tables, image))


class TestImagesWithConvolutions(_Images):
    pass


class TestImagesWithResNet(_Images):
    options: ClassVar = {"image_encoder": "resnet10"}


class TestImagesWithTransformer(_Images):
    options: ClassVar = {"image_encoder": "vit_tiny"}


class TestHeadAndFusion(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"trainable": "head_and_fusion"}


class TestLowRank(ModelContract):
    build = staticmethod(build_multimodal)
    options: ClassVar = {"trainable": "lora", "image_weights": "phantom", "lora_rank": 4}


class TestUNet(ModelContract):
    build = staticmethod(build_unet)
    options: ClassVar = {"width": 4}
    num_outputs = 3
    shape: ClassVar[tuple[int, int, int]] = (16, 16, 20)

    @pytest.fixture
    def contract(self) -> DataContract:
        grid = {"shape": self.shape, "spacing_mm": (1.0, 1.0, 1.0)}
        volumes = tuple(VolumeModality(name=name, **grid) for name in ("t1", "flair"))
        return replace(example_contract(), modalities=volumes)


class TestFlatUNet(TestUNet):
    shape: ClassVar[tuple[int, int, int]] = (16, 24, 1)
