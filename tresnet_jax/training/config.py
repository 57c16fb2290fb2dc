"""The configuration of a training run: one frozen dataclass. `run_config.py` saves it, and every field is a flag."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tresnet_jax.errors import TrainingError
from tresnet_jax.models.base import PARTS
from tresnet_jax.options import (
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    OneOf,
    check_options,
    flag,
)
from tresnet_jax.training.option_rules import conflicts


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. Names and defaults are those of timm's train.py where it has them."""

    # Model
    model: str = 'resnet50d'
    """Architecture, with a tag to select pretrained weights."""
    pretrained: bool = False
    """Start from the pretrained weights of the tag."""
    checkpoint: Annotated[Path | None, flag('FILE', 'none')] = None
    """Start from the weights of this file or training run."""
    num_classes: Annotated[int | None, POSITIVE, flag('N', 'that of the data')] = None
    """Number of classes of the model."""
    new_head: bool = False
    """Draw a new classifier even if the weights have one with the right number of classes."""
    head: Annotated[Literal['linear', 'ml_decoder'] | None, flag('{linear,ml_decoder}', 'that of the weights')] = None
    """Head of the model. If the weights have another head, a new one is drawn."""
    in_chans: Annotated[int | None, POSITIVE, flag('N', 'that of the weights, or 3')] = None
    """Channels of the images: 1 (grey) or 3 (RGB); for npz:FILE any number. Weights for another number are adapted."""
    num_of_groups: Annotated[int | None, POSITIVE, flag('N', 'that of the weights; 100 for a new head')] = None
    """Queries of the ML-Decoder head; at most one for each class."""
    abn_slope: Annotated[float | None, NOT_NEGATIVE, flag('SLOPE', "that of the weights, or timm's 1e-3")] = None
    """Slope of TResNet's leaky ReLUs."""
    drop: Annotated[float, BELOW_1] = 0.0
    """Dropout rate before the classifier."""
    drop_path: Annotated[float, BELOW_1] = 0.0
    """Stochastic depth rate of the last block."""
    sync_bn: bool = True
    """Synchronise batch norm statistics over all devices."""
    dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
    """Compute dtype. Parameters are float32, or float64 with float64."""
    abn_memory: Literal['plain', 'inplace', 'lean', 'recompute'] = 'plain'
    """What the backward pass keeps, from most to least: plain, inplace, lean for a TResNet; recompute for any model."""
    remat: bool = False
    """Recompute each block in the backward pass: least memory, about a third more work."""

    # Data
    data: str = 'embedded:fashion_mnist'
    """tfds:NAME, folder:DIR, csv:FILE, wds:PATTERN, hfds:NAME, npz:FILE, coco:DIR or embedded:fashion_mnist."""
    data_dir: Annotated[Path | None, flag('DIR', "TFDS's own")] = None
    """Folder of TensorFlow Datasets, or the folder that relative paths start from."""
    train_split: str = 'train'
    """Training split, or a part of one: 'train[:500]'. For folder:DIR, also the name of a folder in DIR."""
    val_split: Annotated[str | None, flag('SPLIT', 'the validation split, or else the test split')] = None
    """Evaluation split, named as --train-split."""
    val_fraction: Annotated[float, SHARE] = 0.1
    """Share of data without splits that is set aside for validation."""
    input_key: Annotated[str | None, flag('KEY', 'the only image')] = None
    """For wds:PATTERN, the extensions of the images: 'jpg;png'. For hfds:NAME, their column."""
    target_key: Annotated[str | None, flag('KEY', 'cls or label')] = None
    """For wds:PATTERN, the field of json that is the label. For hfds:NAME, the column of the labels. With --task
    multilabel also for csv:FILE and tfds:NAME; a path of names, or several, separated by commas, one per class."""
    task: Literal['classification', 'multilabel'] = 'classification'
    """One class per image, or any number of classes."""
    target_format: Literal['indices', 'multihot'] = 'indices'
    """For --task multilabel: a list of the classes of an image, or one number from 0 to 1 for each class."""
    keep_unlabelled: bool = False
    """For coco:DIR, keep the images without annotations."""
    class_map: Annotated[Path | None, flag('FILE.txt', 'the classes of the data')] = None
    """Names of the classes in the order of their labels, one per line."""
    max_value: Annotated[float | None, POSITIVE, flag('WHITE', '65535 in 16 bits')] = None
    """Value of white in grey images of more than 8 bits: 4095 for 12 bits in 16-bit files."""
    image_size: Annotated[
        int | tuple[int, int] | None, POSITIVE, flag('PIXELS | HEIGHT WIDTH', 'that of the model')
    ] = None
    """Edge of the square images in pixels, or height and width."""
    num_samples: Annotated[int | None, POSITIVE, flag('N', 'the images of the training split')] = None
    """Number of images that count as one epoch. The run still goes through every image of the split."""
    mean: Annotated[tuple[float, ...] | None, flag('MEAN ...', 'that of the model')] = None
    """Mean of each channel, or one for all, for values in [0, 1]."""
    std: Annotated[tuple[float, ...] | None, POSITIVE, flag('STD ...', 'that of the model')] = None
    """Standard deviation of each channel, or one for all, for values in [0, 1]."""
    threads: Annotated[int, POSITIVE] = 8
    """Decoding threads in each process."""
    workers: Annotated[int, NOT_NEGATIVE] = 0
    """Decoding processes; 0: decode in threads of this process."""
    max_unreadable: Annotated[float, SHARE] = 0.01
    """Largest share of unreadable images, which are skipped and listed in unreadable.log."""

    # Augmentation
    crop: Literal['resized', 'pad', 'none'] = 'resized'
    """resized: resize a random part; pad: shift by up to `padding` pixels; none: the centre."""
    train_crop_mode: Literal['rrc', 'rkrc', 'rkrr'] = 'rrc'
    """How 'resized' crops: rrc, a random part; rkrc and rkrr, the middle or a random part of the image in its
    proportions, for which --scale 0.8 1 --ratio 0.9 1.11 are usual."""
    scale: Annotated[tuple[float, float], POSITIVE] = (0.08, 1.0)
    """Range of the area of the random part, as a share of the image."""
    ratio: Annotated[tuple[float, float], POSITIVE] = (3 / 4, 4 / 3)
    """Range of the width of the random part over its height."""
    padding: Annotated[int, NOT_NEGATIVE] = 4
    """Pixels of border on each side for crop 'pad'."""
    train_interpolation: str = 'random'
    """Filter for resizing; 'random' is bilinear or bicubic."""
    draft: bool = True
    """Decode a JPEG only as finely as its random part needs: faster, with slightly different pixels."""
    hflip: Annotated[float, SHARE] = 0.5
    """Probability of a horizontal flip."""
    vflip: Annotated[float, SHARE] = 0.0
    """Probability of a vertical flip."""
    color_jitter: Annotated[float, NOT_NEGATIVE] = 0.4
    """Strength of brightness, contrast and saturation jitter; ignored with `aa`."""
    aa: Annotated[str | None, flag('POLICY', 'none')] = None
    """'original' (AutoAugment for ImageNet), '3a' (3-Augment), a RandAugment string such as 'rand-m9-mstd0.5-inc1', or
    AugMix: 'augmix-m5-w4-d2'."""
    reprob: Annotated[float, SHARE] = 0.0
    """Probability of random erasing."""
    remode: Literal['const', 'rand', 'pixel'] = 'pixel'
    """Fill of random erasing: the mean colour, one random colour, or a random colour per pixel."""
    cutout: Annotated[float, SHARE] = 0.0
    """Edge of the Cutout square, as a share of the image's edge; 0: no Cutout."""
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha of mixup; 0: no mixup."""
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha of CutMix; 0: no CutMix. With mixup too, each batch gets one of the two."""
    cutmix_minmax: Annotated[tuple[float, float] | None, SHARE, flag('MIN MAX', 'by alpha')] = None
    """Range of the edges of CutMix's box as shares of the image's, instead of cutmix."""
    mixup_prob: Annotated[float, SHARE] = 1.0
    """Probability of mixup or CutMix."""
    mixup_switch_prob: Annotated[float, SHARE] = 0.5
    """Probability of CutMix if there are both."""
    mixup_mode: Literal['batch', 'pair', 'elem'] = 'batch'
    """Draw method and share for each batch, each pair of neighbours, or each image."""
    mixup_off_epoch: Annotated[float, NOT_NEGATIVE] = 0.0
    """Stop mixing at this epoch, counted from 0; 0: always mix."""
    aug_repeats: Annotated[float, NOT_NEGATIVE] = 0.0
    """Repeated augmentation: show each image this many times in a row, augmented differently each time. An epoch keeps
    its length, and has fewer different images. 0: no repetition."""
    prefetcher: bool = False
    """Mix as timm's default loader does: rounded to 8 bits, before Cutout and random erasing. The default is to mix
    last, as timm does with --no-prefetcher."""
    smoothing: Annotated[float | None, SHARE, flag('SHARE', '0.1; 0 for --task multilabel')] = None
    """Label smoothing."""

    # Loss
    loss: Annotated[
        Literal['ce', 'bce', 'asl', 'poly', 'semantic'] | None,
        flag('{ce,bce,asl,poly,semantic}', 'ce; bce for --task multilabel'),
    ] = None
    """Softmax cross entropy, sigmoid cross entropy, Poly-1, the semantic softmax over a tree of classes, or for --task
    multilabel the asymmetric loss."""
    bce_target_thresh: Annotated[float | None, SHARE, flag('SHARE', 'targets as they are')] = None
    """Targets of 'bce' above it count as 1, all others as 0."""
    bce_sum: bool = False
    """Sum 'bce' over the classes instead of averaging."""
    asl_gamma_pos: Annotated[float, NOT_NEGATIVE] = 1.0
    """Exponent of the focal weight of positives in 'asl'."""
    asl_gamma_neg: Annotated[float, NOT_NEGATIVE] = 4.0
    """Exponent of the focal weight of negatives in 'asl'."""
    asl_clip: Annotated[float, SHARE] = 0.05
    """Probability below which negatives have no loss in 'asl'."""
    asl_reduction: Literal['batchmean', 'sum', 'mean'] = 'batchmean'
    """'asl' is summed over the classes and averaged over the images, summed over both as its authors do, or averaged
    over both."""
    asl_focal_gradient: bool = True
    """Let the gradient of 'asl' pass through its focal weight, as timm does; its authors do not."""
    poly_epsilon: float = 2.0
    """Weight of the term that 'poly' adds to the cross entropy."""
    poly_gamma: Annotated[float, NOT_NEGATIVE] = 0.0
    """Exponent of the focal weight of 'poly' with --task multilabel."""
    poly_alpha: Annotated[float | None, SHARE, flag('SHARE', 'no weights')] = None
    """Weight of positives in 'poly' with --task multilabel; negatives have 1 - poly_alpha."""
    semantic_tree: Annotated[Path | None, flag('FILE', 'none')] = None
    """Tree of the classes for 'semantic': FILE.json, or the authors' imagenet21k_miil_tree.pth."""
    loss_pos_weight: Annotated[str | None, flag('WEIGHT', '1')] = None
    """Weight of positives in 'bce' and 'asl': a number, one per class separated by commas, or 'neg_pos', the number of
    images without the class divided by the number with it."""
    loss_class_weight: Annotated[str | None, flag('WEIGHT', '1')] = None
    """Weight of each class in 'bce' and 'asl': a number, one per class separated by commas, 'inv_freq' or
    'effective_num'."""
    class_stats: Annotated[Path | None, flag('FILE.json', 'the training images are counted')] = None
    """Counts for these weights, as timm's class_weights.py writes them."""
    loss_weight_power: Annotated[float, NOT_NEGATIVE] = 1.0
    """Exponent of 'neg_pos' and 'inv_freq'."""
    loss_weight_beta: Annotated[float, BELOW_1] = 0.999
    """Beta of 'effective_num'."""
    loss_weight_max: Annotated[float | None, POSITIVE, flag('WEIGHT', 'no limit')] = None
    """Largest weight of a class by these methods."""

    # Distillation
    kd_model_name: Annotated[str | None, flag('NAME', 'none')] = None
    """Teacher: a tag, or the architecture of kd_checkpoint."""
    kd_checkpoint: Annotated[Path | None, flag('FILE', 'the pretrained weights of the tag')] = None
    """Weights of the teacher: a file, or the folder of a run."""
    kd_distill_type: Literal['logit', 'feature'] = 'logit'
    """Learn the logits of the teacher, or its pooled features."""
    kd_loss_type: Literal['kl'] = 'kl'
    """Loss of 'logit': the KL divergence."""
    kd_temperature: Annotated[float, POSITIVE] = 4.0
    """Temperature of both softmaxes of 'logit'."""
    distill_loss_weight: Annotated[float | None, NOT_NEGATIVE, flag('SHARE', '1, or 1 - task_loss_weight')] = None
    """Factor of the loss of the teacher."""
    task_loss_weight: Annotated[float | None, NOT_NEGATIVE, flag('SHARE', '1')] = None
    """Factor of the loss of the labels."""

    # Evaluation
    interpolation: Annotated[str | None, flag('FILTER', 'that of the model')] = None
    """Filter for resizing images for evaluation."""
    crop_pct: Annotated[float | None, POSITIVE, flag('SHARE', 'that of the model')] = None
    """Edge of the crop over the edge of the resized image."""
    crop_mode: Annotated[
        Literal['center', 'squash', 'border'] | None, flag('{center,squash,border}', 'that of the model')
    ] = None
    """How images that are not square are evaluated: cut, squashed, or with a border."""
    eval_metric: Annotated[
        Literal['top1', 'top5', 'semantic_top1', 'map', 'micro_f1', 'macro_f1', 'sample_f1'] | None,
        flag(
            '{top1,top5,semantic_top1,map,micro_f1,macro_f1,sample_f1}',
            'top1; map for --task multilabel; semantic_top1 for --loss semantic',
        ),
    ] = None
    """Metric that picks the best checkpoint."""
    multilabel_threshold: Annotated[float, SHARE] = 0.5
    """Probability from which a class counts as predicted in F1."""

    # Optimisation
    opt: Literal['sgd', 'momentum', 'adam', 'adamw', 'nadamw', 'lamb', 'rmsproptf', 'lion', 'lars', 'adopt', 'muon'] = (
        'sgd'
    )
    """Optimiser, named as in timm: 'sgd' has Nesterov momentum, 'momentum' has plain momentum."""
    opt_eps: Annotated[float | None, POSITIVE, flag('EPS', "timm's for the optimiser")] = None
    """Epsilon of the optimiser."""
    opt_betas: Annotated[tuple[float, float] | None, BELOW_1, flag('BETA1 BETA2', "timm's for the optimiser")] = None
    """Decay rates of the optimiser's averages."""
    opt_kwargs: Annotated[tuple[str, ...], flag('KEY=VALUE ...', 'none')] = ()
    """Other options of the optimiser, under timm's names: max_grad_norm (lamb), alpha (rmsproptf), trust_coeff and
    nesterov (lars), clip_exp (adopt), ns_steps (muon)."""
    lr: Annotated[float | None, POSITIVE, flag('LR', 'lr_base, scaled by the batch size')] = None
    """Peak learning rate."""
    lr_base: Annotated[float, POSITIVE] = 0.1
    """Learning rate for a batch of lr_base_size images."""
    lr_base_size: Annotated[int, POSITIVE] = 256
    """Batch size that lr_base is for."""
    lr_base_scale: Annotated[Literal['linear', 'sqrt'] | None, flag('{linear,sqrt}', "timm's rule")] = None
    """Multiply lr_base by batch_size / lr_base_size or by its square root. timm's rule: sqrt if the name of the
    optimiser contains 'ada' or 'lamb', otherwise linear."""
    momentum: Annotated[float, BELOW_1] = 0.9
    """Momentum of 'sgd', 'momentum', 'rmsproptf', 'lars' and 'muon'."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 2e-5
    """Weight decay of kernels; biases and norms have none."""
    sched: Literal['cosine', 'one_cycle', 'step', 'multistep', 'poly', 'wsd', 'constant'] = 'cosine'
    """Schedule of the learning rate."""
    sched_on_updates: bool = True
    """Change the learning rate at each step; timm's default is once per epoch. 'one_cycle' always changes it at each
    step."""
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 5.0
    """Epochs of linear warm-up; not used by 'one_cycle'."""
    warmup_prefix: bool = False
    """Put the warm-up before the schedule, which makes the run longer, instead of replacing the first part of the
    schedule."""
    warmup_lr: Annotated[float, NOT_NEGATIVE] = 1e-5
    """Learning rate at the start of the warm-up."""
    min_lr: Annotated[float, NOT_NEGATIVE] = 0.0
    """Learning rate at the end of 'cosine', 'poly' and 'wsd'."""
    cooldown_epochs: Annotated[float, NOT_NEGATIVE] = 0.0
    """Epochs at min_lr after 'cosine', 'poly' or 'wsd', in addition to `epochs`."""
    decay_epochs: Annotated[float | None, POSITIVE, flag('N', '90; 0.2 for wsd')] = None
    """Epochs between the decays of 'step'; epochs of the decay of 'wsd', or a share of its steps if less than 1."""
    decay_milestones: Annotated[tuple[float, ...], POSITIVE] = (90.0, 180.0, 270.0)
    """Epochs of the decays of 'multistep'. As in timm, each comes one epoch or step earlier."""
    decay_rate: Annotated[float, POSITIVE] = 0.1
    """Factor of each decay of 'step' and 'multistep'; power of 'poly', as in timm."""
    lr_k_decay: Annotated[float, POSITIVE] = 1.0
    """Exponent of time in 'cosine' and 'poly'."""
    lr_decay_fn: Literal['1-sqrt', 'linear', 'cosine', 'power', 'exp'] = '1-sqrt'
    """Decay of 'wsd'."""
    pct_start: Annotated[float, SHARE] = 0.1
    """Share of the steps of 'one_cycle' in which the learning rate rises."""
    div_factor: Annotated[float, POSITIVE] = 20.0
    """'one_cycle' starts at lr / div_factor."""
    final_div_factor: Annotated[float, POSITIVE] = 1e4
    """'one_cycle' ends at its start / final_div_factor."""
    clip_grad: Annotated[float | None, POSITIVE, flag('LIMIT', 'no clipping')] = None
    """Clip gradients to this limit, in the way that clip_mode selects."""
    clip_mode: Literal['norm', 'value', 'agc'] = 'norm'
    """What --clip-grad limits: the norm of all gradients together, each value, or (adaptive gradient clipping) the
    gradient of each output channel relative to its weights."""
    accumulate: Annotated[int, POSITIVE] = 1
    """Compute each batch in this many parts, one after the other."""
    model_ema: bool = False
    """Keep a moving average of parameters and statistics, and evaluate it too."""
    model_ema_decay: Annotated[float, BELOW_1] = 0.9998
    """Decay of the moving average."""
    model_ema_warmup: bool = False
    """Increase the decay over the first steps, for short runs."""
    freeze: Annotated[tuple[str, ...], OneOf(('backbone', *PARTS)), flag('PART ...', 'none')] = ()
    """Parts to freeze, with their batch norm in evaluation mode: backbone, stem, layer1 to layer4, head."""
    layer_decay: Annotated[float | None, POSITIVE, flag('FACTOR', 'one rate for all blocks')] = None
    """Factor on the learning rate from each block to the one before it."""

    # Run
    epochs: Annotated[float, POSITIVE] = 300.0
    """Length of the run in epochs."""
    steps: Annotated[int | None, POSITIVE, flag('N', 'epochs determines it')] = None
    """Length of the run in steps."""
    stop_epoch: Annotated[float | None, POSITIVE, flag('N', 'the end of the schedule')] = None
    """Stop after this epoch, with the schedule of the whole run. A larger --stop-epoch continues the run."""
    save_epochs: Annotated[tuple[float, ...], POSITIVE, flag('N ...', 'none')] = ()
    """Evaluate after these epochs, and keep their checkpoints."""
    batch_size: Annotated[int, POSITIVE] = 256
    """Images per step, over all devices and hosts."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of all random numbers."""
    eval_every: Annotated[float, POSITIVE] = 1.0
    """Epochs between evaluations; there is always one at the end."""
    eval_at_start: bool = False
    """Also evaluate before the first step."""
    val_batch_size: Annotated[int | None, POSITIVE, flag('N', 'batch_size')] = None
    """Images per evaluation step, over all devices and hosts."""
    checkpoint_every: Annotated[int, POSITIVE] = 1000
    """Steps between checkpoints; there is also one after each evaluation."""
    keep_last: Annotated[int, POSITIVE] = 2
    """Number of latest checkpoints to keep."""
    keep_best: Annotated[int, NOT_NEGATIVE] = 1
    """Number of checkpoints with the best eval_metric to keep."""
    log_every: Annotated[int, POSITIVE] = 50
    """Steps between log lines."""
    log_wandb: bool = False
    """Also log to Weights & Biases; WANDB_MODE=offline keeps the log on this host."""
    wandb_project: Annotated[str | None, flag('NAME', "that of wandb's settings")] = None
    """Project at Weights & Biases."""
    wandb_tags: Annotated[tuple[str, ...], flag('TAG ...', 'none')] = ()
    """Tags of the run at Weights & Biases."""
    wandb_resume_id: Annotated[str | None, flag('ID', 'that of the folder of the run')] = None
    """Run at Weights & Biases to continue."""
    devices: Annotated[int | None, POSITIVE, flag('N', 'all')] = None
    """Devices of this host to use; on a CPU, the number of virtual devices."""
    deterministic: bool = False
    """Make runs bit-identical on GPUs too, where the compiler might otherwise choose faster programs."""
    skip_nonfinite: Annotated[int, NOT_NEGATIVE] = 0
    """Number of steps with a non-finite loss or gradient to skip before the run stops."""

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width of the images in pixels. `image_size` must be set."""
        assert self.image_size is not None
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def channels(self) -> int:
        """Channels of the images: `in_chans`, which is that of the model once a run has started, or else 3."""
        return self.in_chans or 3

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with their neighbours."""
        return bool(self.mixup or self.cutmix or self.cutmix_minmax)

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: `lr`, or timm's rule if it is None."""
        if self.lr is not None:
            return self.lr
        ratio = self.batch_size / self.lr_base_size
        scale = self.lr_base_scale or ('sqrt' if 'ada' in self.opt or 'lamb' in self.opt else 'linear')
        return self.lr_base * (ratio if scale == 'linear' else ratio**0.5)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.task == 'multilabel'

    @property
    def loss_name(self) -> str:
        """`loss`, or the default of the task."""
        return self.loss or ('bce' if self.multilabel else 'ce')

    @property
    def label_smoothing(self) -> float:
        """`smoothing`, or the default of the task."""
        return self.smoothing if self.smoothing is not None else 0.0 if self.multilabel else 0.1

    @property
    def target_smoothing(self) -> float:
        """Label smoothing of the targets; 0 if the loss smooths."""
        return 0.0 if self.loss_name == 'semantic' else self.label_smoothing

    @property
    def rating(self) -> str:
        """`eval_metric`, or the default of the task: the metric that picks the best checkpoint."""
        default = 'semantic_top1' if self.loss_name == 'semantic' else 'top1'
        return self.eval_metric or ('map' if self.multilabel else default)

    def check(self) -> None:
        """Raise TrainingError if a value is of the wrong type or out of range, or does not suit the others."""
        check_options(self, TrainingError)
        for line in conflicts(self, _DEFAULTS):
            raise TrainingError(line)


_DEFAULTS = TrainConfig()
