"""The page in the browser: `causalmm app`. Nothing else needs this package.

Only `controls`, `events`, `page` and `server` import gradio, which comes with the extra [app].
"""
