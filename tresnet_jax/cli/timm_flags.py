"""Flags of timm's train.py and validate.py that this package names differently: what to give instead, in one line.

Without these, the parser would only say that a flag is unknown, or propose one that is spelled alike.
"""

from collections.abc import Mapping, Sequence

from tresnet_jax.errors import TrainingError, shown

LEAVE_OUT = 'is not needed here; leave it out'
MISSING = 'has no counterpart here; leave it out'

_SHARED: dict[str, str] = {
    **dict.fromkeys(('--amp', '--amp-dtype', '--amp-impl', '--model-dtype'), 'give --dtype bfloat16'),
    **dict.fromkeys(('--apex-amp', '--native-amp'), 'give --dtype bfloat16'),
    '--dataset': 'give --data KIND:NAME, such as --data folder:DIR',
    '-d': 'give --data KIND:NAME, such as --data folder:DIR',
    '-b': 'give --batch-size, which is the total over all devices',
    '-j': 'give --threads, or --workers for processes',
    '--img-size': 'give --image-size',
    '--input-img-mode': 'give --in-chans 1 for grey images, to train.py',
    '--num-gpu': 'give --devices',
    '--device': 'JAX uses the accelerators that it finds; --devices is their number',
    '--gp': 'the pooling is that of the weights',
    **dict.fromkeys(('--channels-last', '--torchscript', '--torchcompile', '--torchcompile-mode'), LEAVE_OUT),
    **dict.fromkeys(('--fuser', '--fast-norm', '--pin-mem', '--dataset-download'), LEAVE_OUT),
    **dict.fromkeys(('--dataset-trust-remote-code', '--reparam'), LEAVE_OUT),
    **dict.fromkeys(('--tta', '--model-kwargs'), MISSING),
}
TRAIN = _SHARED | {
    '--input-size': 'give --image-size HEIGHT WIDTH, and --in-chans',
    '--validation-batch-size': 'give --val-batch-size, which is the total over all devices',
    '-vb': 'give --val-batch-size, which is the total over all devices',
    '--grad-accum-steps': 'give --accumulate, and multiply --batch-size by it: that is the total of all parts here',
    '--grad-checkpointing': 'give --remat',
    '--initial-checkpoint': 'give --checkpoint',
    '--pretrained-path': 'give --checkpoint',
    '--resume': 'give --workdir alone, the folder of the run',
    '--no-resume-opt': 'give --checkpoint and another --workdir, to begin with the weights alone',
    '--start-epoch': 'a run resumes where it stopped; give --workdir alone',
    '--output': 'give --workdir',
    '--experiment': 'give --workdir',
    '--checkpoint-hist': 'give --keep-best, and --keep-last',
    '--log-interval': 'give --log-every',
    '--recovery-interval': 'give --checkpoint-every',
    '--val-interval': 'give --eval-every',
    '--train-num-samples': 'give --num-samples',
    '--val-num-samples': "give a part of the split, such as --val-split 'validation[:1000]'",
    '--bce-loss': 'give --loss bce',
    '--bce-pos-weight': 'give --loss-pos-weight',
    '--no-aug': 'give --crop none --hflip 0 --color-jitter 0',
    '--drop-connect': 'give --drop-path',
    '--dist-bn': '--no-sync-bn averages the statistics; the default synchronises them',
    '-c': 'give --recipe, or --workdir with a config.json in it',
    '--config': 'give --recipe, or --workdir with a config.json in it',
    '--dr': 'give --decay-rate',
    **dict.fromkeys(('--no-ddp-bb', '--local-rank', '--synchronize-step', '--opt-foreach'), LEAVE_OUT),
    **dict.fromkeys(('--worker-seeding', '--use-multi-epochs-loader', '--save-images'), LEAVE_OUT),
    **dict.fromkeys(('--model-ema-force-cpu', '--jsd-loss', '--aug-splits', '--resplit', '--split-bn'), MISSING),
    **dict.fromkeys(('--recount', '--drop-block', '--bn-momentum', '--bn-eps', '--epoch-repeats'), MISSING),
    **dict.fromkeys(('--lr-noise', '--lr-noise-pct', '--lr-noise-std', '--patience-epochs'), MISSING),
    **dict.fromkeys(('--lr-cycle-mul', '--lr-cycle-decay', '--lr-cycle-limit'), MISSING),
    **dict.fromkeys(('--color-jitter-prob', '--grayscale-prob', '--gaussian-blur-prob'), MISSING),
    **dict.fromkeys(('--head-init-scale', '--head-init-bias'), MISSING),
    **dict.fromkeys(('--layer-decay-min-scale', '--layer-decay-no-opt-scale'), MISSING),
}
EVALUATE = _SHARED | {
    '--input-size': 'give --image-size HEIGHT WIDTH',
    '--use-train-size': 'is the default here; --test-size is what timm does without it',
    '--use-ema': 'an average of the weights is used where there is one',
    '--num-classes': 'the number of classes is that of the weights',
    '--in-chans': 'the number of channels is that of the weights',
    **dict.fromkeys(('--no-prefetcher', '--log-freq', '--log-interval', '--retry'), LEAVE_OUT),
    **dict.fromkeys(('--test-pool', '--metrics-avg', '--class-map'), MISSING),
}


def check_timm_flags(argv: Sequence[str], flags: Mapping[str, str]) -> None:
    """Check that a command line has no flag of timm's that has another name here, and no folder of data alone.

    Args:
        argv: the command line.
        flags: TRAIN or EVALUATE.

    Raises:
        TrainingError: it has one; the line says what to give.
    """
    if argv and not argv[0].startswith('-'):
        raise TrainingError(f'{shown(argv[0])}: for a folder of images, give --data folder:{shown(argv[0])}')
    for argument in argv:
        name = argument.partition('=')[0].replace('_', '-')
        if name in flags:
            raise TrainingError(f"{name} is a flag of timm's: {flags[name]}")
