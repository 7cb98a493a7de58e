"""Installation of the spatial model library: `pip install -e .`, extras in `EXTRAS`."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

REQUIRED = [
    "torch>=2.11",
    "torchvision",
    "transformers>=5.17,<5.25",
    "safetensors>=0.5",
    "huggingface_hub>=1.0",
    "peft>=0.18",
    "accelerate>=1.0",
    "datasets>=4.0",
    "av>=14.1",
    "numpy>=1.26",
    "pillow>=10",
    "trimesh>=4",
]

EXTRAS = {
    "flash": ["flash-attn>=2.7; sys_platform == 'linux'"],  # built on the spot, where CUDA's compiler is
    "kernels": ["kernels"],  # the same attention, built by others and fetched from the Hub
    "geometry": ["evo>=1.31,<1.38", "scipy", "pycolmap>=3.11"],
    "view": ["rerun-sdk>=0.30"],
    "cad": ["cadquery>=2.5", "manifold3d>=3", "scipy"],
    "segment": ["pycocotools>=2.0.8"],
    "scene": ["timm>=1.0", "scipy"],
    "serve": ["fastapi", "uvicorn", "prometheus_client", "gradio>=6.31"],
    "train": ["trl>=1.0", "matplotlib>=3.8"],
    "scale": ["ray[data,serve]>=2.50"],
}
EXTRAS["test"] = sorted(
    {
        "pytest>=8",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis",
        "httpx",
        "openai>=1.60",
        "opentelemetry-sdk",
        "playwright",
        "scipy",
        "ruff==0.17.6",
        "mypy==2.4.1",
    }
    | {
        requirement
        for name in ("cad", "geometry", "scale", "scene", "segment", "serve", "train", "view")
        for requirement in EXTRAS[name]
    }
)

# What lies beside the packages in the source tree and is needed where they are installed.
BESIDE = ("hub", "model_card.md")


class BuildPy(build_py):
    """A wheel takes `BESIDE` along, in a folder of the package that reads it
    (`convert_weights.repository.files.beside`)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "convert_weights", "repository", "beside")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in BESIDE:
            if Path(name).is_dir():
                shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(name, folder / name)


setup(
    name="dsr-models",
    version="0.1.0",
    description="Spatial models for transformers: DSR, π³, PAGE-4D, FrozenQwenSAM, Cadrille, Scene Q-Former",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    py_modules=["configuration_dsr", "processing_dsr"],
    packages=find_packages(
        include=["modeling_dsr", "convert_weights", "convert_weights.*", "dsr_toolkit", "dsr_toolkit.*"]
    ),
    package_data={
        "dsr_toolkit": ["assets/*", "assets/tiny/*/*", "training/launch/*", "py.typed"],
        "modeling_dsr": ["py.typed"],
        "convert_weights": ["py.typed"],
    },
    cmdclass={"build_py": BuildPy},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["dsr=dsr_toolkit.cli:main"],
        "lmms_eval.models": ["dsr=dsr_toolkit.evaluation.harnesses.lmms_eval_model:manifest"],
    },
)
