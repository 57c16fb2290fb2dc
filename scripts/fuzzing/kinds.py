"""The table of all kinds."""

from fuzzing import command_lines, exported, folders, image_files, safetensors_files, torch_files

KINDS = {
    kind.name: kind
    for kind in (
        safetensors_files.KIND,
        torch_files.ZIP,
        torch_files.OLDER,
        folders.RUN,
        folders.HUB,
        exported.KIND,
        image_files.KIND,
        command_lines.KIND,
    )
}
