"""Configuration of the site: `make docs` builds it into site/."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / '_ext'))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # also for the kernels of the notebooks

project = 'tresnet_jax'
author = 'the authors of tresnet_jax'
copyright = 'the authors of tresnet_jax, Apache-2.0'

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
    'sphinx_design',
    'command_help',
]
exclude_patterns = ['_ext', 'generated']

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 4

# Notebooks run again only if their code changes.
nb_execution_mode = 'cache'
nb_execution_cache_path = str(Path(__file__).parents[1] / 'build' / 'docs' / 'notebooks')
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

default_role = 'py:obj'  # `name` in a docstring is code, and a link where the site documents the name
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_ivar = True
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
maximum_signature_line_length = 78

copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = '\\'

html_theme = 'sphinx_book_theme'
html_title = 'tresnet_jax'
html_favicon = '_static/favicon.svg'
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_sphinx = False
html_context = {'default_mode': 'auto'}  # light or dark, as the system
html_theme_options = {
    'show_toc_level': 2,
    'navigation_with_keys': False,
    'navbar_persistent': [],  # its search field would be a second one
}


def _site_links(app, page: str, text: list[str]) -> None:
    """Make links between files of the repository links between pages of the site."""
    for name in ('CONTRIBUTING', 'SECURITY'):
        text[0] = text[0].replace(f'](../{name}.md', f']({name.lower()}.md')


def _included_links(app, path, page: str, text: list[str]) -> None:
    text[0] = text[0].replace('](docs/', '](')


def setup(app) -> None:
    app.connect('source-read', _site_links)
    app.connect('include-read', _included_links)
