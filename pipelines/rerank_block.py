"""A Modular Diffusers block that ranks images by a reward: append it to the blocks of any text-to-image pipeline.

```py
blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
rerank = ModularPipelineBlocks.from_pretrained("owner/reward-rerank-block", trust_remote_code=True)  # or RewardRerankBlock()
blocks.sub_blocks.insert("rerank", rerank, len(blocks.sub_blocks))
pipe = blocks.init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
pipe.load_components()
pipe.update_components(reward_model=diffusers_ext.load_reward("pickscore"))
best = pipe(prompt="a lighthouse in a storm", num_images_per_prompt=8, keep=2, output="images")
```
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from huggingface_hub import create_repo, upload_folder

from diffusers_ext.errors import InputError
from diffusers_ext.publish.cards.pipeline import write_block_card
from diffusers_ext.publish.loadable import write_code_file
from diffusers_ext.rewards.modeling_image_reward import ImageRewardModel


class RewardRerankBlock(ModularPipelineBlocks):
    """Order the images of each prompt by a reward, best first, and keep some.

    The component `reward_model` is anything with `score(prompts, images)`; only an ImageRewardModel is loaded by
    `load_components`, other rewards are passed to `update_components`. Images come from one batch of
    `num_images_per_prompt`; with one generator per image, each can be drawn again by its own seed.
    """

    @property
    def description(self) -> str:
        return "Orders the images of each prompt by a reward, best first, and keeps some"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("reward_model", ImageRewardModel, description="has score(prompts, images) -> (N,)")]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("prompt", type_hint=str | list[str], required=True, description="P texts, or one"),
            InputParam(
                "images", required=True, description="of P x N images, prompt by prompt: PIL, or (P x N, 3, H, W)"
            ),
            InputParam("keep", type_hint=int, default=None, description="images kept of each prompt; all without"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("images", description="the kept images of each prompt, best first, prompt by prompt"),
            OutputParam("scores", type_hint=list[float], description="their rewards"),
            OutputParam("ranking", type_hint=list[int], description="their positions among the images drawn"),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        block = self.get_block_state(state)
        prompts = [block.prompt] if isinstance(block.prompt, str) else list(block.prompt)
        drawn = len(block.images) // len(prompts)
        keep = drawn if block.keep is None else block.keep
        _check(components.reward_model, len(block.images), len(prompts), keep)
        scores = components.reward_model.score([prompt for prompt in prompts for _ in range(drawn)], block.images)
        last = scores.float().nan_to_num(nan=-torch.inf)  # a reward of NaN comes behind all
        order = last.view(len(prompts), drawn).argsort(dim=1, descending=True, stable=True)[:, :keep].cpu()
        positions = (order + drawn * torch.arange(len(prompts))[:, None]).flatten()
        tensor = isinstance(block.images, torch.Tensor)
        block.images = block.images[positions] if tensor else [block.images[position] for position in positions]
        block.scores, block.ranking = scores.cpu()[positions].tolist(), positions.tolist()
        self.set_block_state(state, block)
        return components, state

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the JSON, as diffusers does, and the code file and card that it leaves to people; upload, if asked to.

        `save_pretrained`, which calls this, stays diffusers' own: it takes the key of `auto_map` from its own name.
        """
        folder = Path(save_directory)
        write_code_file(folder, type(self))
        write_block_card(folder, type(self), kwargs.get("repo_id", folder.resolve().name))
        super().save_config(str(folder), push_to_hub=push_to_hub, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes; return the commit's address. Arguments as diffusers' models have them."""
        repository = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repository)
            return upload_folder(
                repo_id=repository,
                folder_path=folder,
                token=token,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                create_pr=create_pr,
            )


def _check(reward: Any, images: int, prompts: int, keep: int) -> None:
    if reward is None:
        raise InputError("no reward_model; give one: pipe.update_components(reward_model=load_reward(NAME))")
    if images % prompts:
        raise InputError(f"{images} images of {prompts} prompts; every prompt has equally many")
    if not 1 <= keep <= images // prompts:
        raise InputError(f"keep={keep}: 1 to {images // prompts}, the images of a prompt")
