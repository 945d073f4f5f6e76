"""Pictures become the same pixels as with transformers' image processors."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mlx_corematching.errors import InputError
from mlx_corematching.inputs.pictures import load_picture
from mlx_corematching.inputs.preprocess import ImageProcessor

THEIRS = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}

CONFIGS = {
    "llava-1.5": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
    },
    "whole numbers": {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 40},
    "exact size": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 56, "width": 42},
        "do_center_crop": False,
    },
    "crop larger than the picture": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 57, "width": 30},
    },
    "no resize": {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "crop_size": {"height": 33, "width": 33},
    },
    "bilinear, not normalised": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": 32,
        "resample": 2,
        "do_normalize": False,
    },
    "not rescaled": {
        "image_processor_type": "CLIPImageProcessor",
        "size": 32,
        "crop_size": 32,
        "do_rescale": False,
    },
    "defaults": {"image_processor_type": "CLIPImageProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 56, "width": 56}},
    "siglip defaults": {"image_processor_type": "SiglipImageProcessor"},
    "llava, padded": {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
    },
    "llava, not padded": {
        "image_processor_type": "LlavaImageProcessor",
        "size": 56,
        "crop_size": 56,
    },
}

SIZES = [(56, 56), (64, 48), (31, 77), (1, 1), (300, 5), (3, 90), (129, 128)]


def noise(width, height, mode="RGB", seed=0):
    random = np.random.RandomState(seed)
    made = Image.fromarray(random.randint(0, 256, (height, width, 4)).astype(np.uint8), "RGBA")
    return made.convert(mode) if mode != "RGBA" else made


def theirs(config, image):
    kind = THEIRS[config["image_processor_type"]]
    options = {name: value for name, value in config.items() if name != "image_processor_type"}
    return np.asarray(kind(**options)(image)["pixel_values"][0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_equal_transformers(name, size):
    image = noise(*size)
    made = ImageProcessor.from_dict(CONFIGS[name])(image)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, theirs(CONFIGS[name], image), atol=1e-6, rtol=1e-6)
    assert ImageProcessor.from_dict(CONFIGS[name]).output_size(*size) == made.shape[1:]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "PA", "L", "LA", "CMYK", "1", "YCbCr"])
def test_every_mode_equals_transformers(mode):
    rgba = noise(70, 50, "RGBA")
    image = rgba.convert("P").convert("PA") if mode == "PA" else rgba.convert(mode)
    made = ImageProcessor.from_dict(CONFIGS["llava-1.5"])(load_picture(image).image)
    if "A" in mode:
        # transformers lays transparency on white since 5.21 or so; done here, so that any serves.
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    np.testing.assert_allclose(made, theirs(CONFIGS["llava-1.5"], image), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photographs_stand_upright_as_with_transformers(orientation):
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    noise(60, 40).save(file, "PNG", exif=exif)
    upright = load_picture(Image.open(file)).image
    assert np.array_equal(np.asarray(upright), np.asarray(load_image(Image.open(file))))
    assert upright.size == ((60, 40) if orientation <= 4 else (40, 60))


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    made = np.asarray(load_picture(tmp_path / "grey.png").image)
    assert np.array_equal(made[..., 0], (values >> 8).astype(np.uint8))
    wide = Image.fromarray(values.astype(np.int32))
    assert np.array_equal(np.asarray(load_picture(wide).image)[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "Pix2StructImageProcessor"}, "Pix2StructImageProcessor"),
        ({"size": {"longest_edge": 3}}, "size .* is not supported"),
    ],
)
def test_processors_that_are_not_known(config, message):
    with pytest.raises(InputError, match=message):
        ImageProcessor.from_dict(config)


def test_a_processor_that_does_not_fit_the_tower():
    processor = ImageProcessor.from_dict({"size": 56, "do_center_crop": False})
    processor.check(80, 80, 56)
    with pytest.raises(InputError, match="80 × 56, but the vision tower takes 56 × 56"):
        processor.check(80, 56, 56)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(sorted(CONFIGS)))
def test_patches_lie_where_their_pixels_came_from(width, height, name):
    """A ramp tells of each output pixel where it was; the geometry has to agree."""
    processor = ImageProcessor.from_dict(CONFIGS[name])
    geometry = processor.geometry(width, height)
    made_height, made_width = processor.output_size(width, height)
    left, top, _, _ = geometry.patch_box(0, 0, 1)
    _, _, right, bottom = geometry.patch_box(made_height - 1, made_width - 1, 1)
    # What was not cropped away horizontally and vertically has the picture's own centre.
    assert abs((left + right) / 2 - width / 2) <= 1.5 / min(geometry.scale[0], 1)
    assert abs((top + bottom) / 2 - height / 2) <= 1.5 / min(geometry.scale[1], 1)
    assert right - left == pytest.approx(made_width / geometry.scale[0])


def test_the_first_patch_shows_the_top_left():
    image = Image.new("RGB", (112, 56), "black")
    image.paste((255, 255, 255), (28, 0, 42, 14))  # the crop's first patch, at twice its size
    processor = ImageProcessor.from_dict({**CONFIGS["llava-1.5"], "do_normalize": False})
    assert processor.geometry(112, 56).patch_box(0, 0, 14) == (28, 0, 42, 14)
    pixels = processor(image)
    assert pixels[:, :14, :14].min() == 1.0
    assert pixels[:, :, 14:].max() == 0.0
