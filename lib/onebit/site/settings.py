"""How Sphinx is told to build the site.  Nothing here may make a page ask for anything but its own files."""

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TITLE = "1-bit diffusion: the study"
PROSE = "Charter, 'Bitstream Charter', 'Sitka Text', Cambria, Georgia, serif"
PLAIN = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', Helvetica, Arial, sans-serif"
CODE = "ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace"
FONTS = {"font-stack": PROSE, "font-stack--headings": PLAIN, "font-stack--monospace": CODE, "ob-plain": PLAIN}


def settings(extra: Path) -> dict[str, Any]:
    """Sphinx's configuration; the content of `extra` is copied beside the pages as it is."""
    return _site(extra) | _notebooks() | _equations()


def anchor(heading: str) -> str:
    """The name of a heading in links, as JupyterLab makes it: what works there works on the site."""
    return heading.replace(" ", "-")


def _site(extra: Path) -> dict[str, Any]:
    return {
        "project": TITLE, "html_title": TITLE, "language": "en", "extensions": ["myst_nb", "sphinx.ext.mathjax"],
        "highlight_language": "none",
        "html_theme": "furo", "html_static_path": [str(HERE / "static")], "html_extra_path": [str(extra)],
        "html_favicon": str(HERE / "static" / "icon.svg"),
        "html_css_files": ["onebit.css"], "html_js_files": [("onebit.js", {"defer": "defer"})],
        "html_theme_options": {
            "light_css_variables": FONTS | {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
            "dark_css_variables": FONTS | {"color-brand-primary": "#7fb8e0", "color-brand-content": "#7fb8e0"},
            "top_of_page_buttons": [],
        },
        "html_copy_source": False, "html_show_sourcelink": False, "html_use_index": False,
        "html_domain_indices": False, "html_show_copyright": False, "html_permalinks_icon": "#",
        "html_show_search_summary": False,  # it is fetched page by page, which browsers refuse on file://
    }


def _notebooks() -> dict[str, Any]:
    return {
        "nb_execution_mode": "off", "nb_merge_streams": True, "nb_output_stderr": "remove",
        "nb_render_markdown_format": "gfm", "nb_code_prompt_show": "Code", "nb_code_prompt_hide": "Code",
        "nb_ipywidgets_js": {},  # the default loads require.js and the widget manager from a CDN
        "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"],
        "myst_heading_anchors": 3, "myst_heading_slug_func": "onebit.site.settings.anchor",
    }


def _equations() -> dict[str, Any]:
    return {
        "mathjax_path": "mathjax/tex-svg.js",
        # the menu offers add-ons that would be loaded from elsewhere
        "mathjax3_config": {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}},
    }
