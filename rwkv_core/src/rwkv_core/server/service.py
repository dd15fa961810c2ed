"""The service behind the endpoints: the model, the engine, the template and stored states."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_core import bundled
from rwkv_core.server.errors import ApiError
from rwkv_core.server.metrics import Metrics
from rwkv_core.server.responses_store import ResponsesStore
from rwkv_core.server.states_store import StatesStore
from rwkv_core.server.templates.choice import check_template, template_of
from rwkv_core.serving import Engine
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.rwkv import RWKV
    from rwkv_core.server.settings import Settings
    from rwkv_core.server.templates.base import Template


@dataclass(frozen=True, eq=False)
class Running:
    """A loaded model, and the objects that serve it.

    Attributes:
        model_id: the model's name at the endpoints.
        created: time of loading, in seconds since 1970.
        states, responses: the stored states and answers.
    """

    settings: Settings
    engine: Engine
    template: Template
    model_id: str
    created: int
    states: StatesStore
    responses: ResponsesStore
    metrics: Metrics

    def check_model(self, name: str | None) -> None:
        """Raise ApiError if a request asks for another model."""
        if name is not None and name not in (self.model_id, self.engine.model.path.name):
            raise ApiError(
                404,
                f"The model {printable(name, 80)!r} does not exist. This server has only "
                f"{self.model_id!r}.",
                code="model_not_found",
                param="model",
            )


class Service:
    """Loads a model in a thread, and holds it while it is served.

    Attributes:
        error: the error that ended loading, if one did.
    """

    def __init__(self, settings: Settings, load: Callable[[], RWKV]) -> None:
        """Check the chat template. Raises OptionError if it is wrong."""
        self.settings = settings
        self._load = load
        self._template = check_template(settings.chat_template)
        self.error: BaseException | None = None
        self._running: Running | None = None
        self._lock = threading.Lock()  # of `_running` and `_is_closed`
        self._is_closed = False

    def start(self, on_ready: Callable[[Running], None], on_error: Callable[[], None]) -> None:
        """Load the model in a thread. Then call `on_ready`, or `on_error` if loading failed.

        `on_ready` is not called after `close`.
        """

        def work() -> None:
            try:
                running = self._start()
            except BaseException as error:
                self.error = error
                on_error()
            else:
                if running is not None:
                    on_ready(running)

        threading.Thread(target=work, name="rwkv-core loading", daemon=True).start()

    def running(self) -> Running:
        """Return the loaded model. Raises ApiError while it loads."""
        if self._running is None:
            raise ApiError(503, "The model is still loading.", code="loading")
        return self._running

    def close(self) -> None:
        """Close the engine. Remaining requests are cancelled.

        If the model is still loading, its engine is not started.
        """
        with self._lock:
            self._is_closed = True
        if self._running is not None:
            self._running.engine.close()

    def _start(self) -> Running | None:
        """Load the model and start the engine. Returns None if the service was closed meanwhile."""
        settings = self.settings
        rwkv = self._load()
        if self._is_closed:
            return None
        model = rwkv.model
        shipped = {path: name for name, path in bundled.MODELS.items()}
        model_id = shipped.get(model.path, model.path.stem)
        engine = Engine(
            model,
            rwkv.tokenizer,
            max_batch=settings.max_batch,
            cache_bytes=settings.cache_bytes,
            max_waiting=settings.max_waiting,
            max_prompt=settings.max_prompt,
        )
        max_bytes = settings.state_bytes
        if settings.state_folder is not None:
            max_bytes = settings.state_folder_bytes
        try:
            # Generate one token, so that compilation and other setup is done before requests come.
            engine.submit("", 1, sampling=None).result  # noqa: B018
            running = Running(
                settings=settings,
                engine=engine,
                template=self._template or template_of(model.path.name, model.n_vocab),
                model_id=model_id,
                created=int(time.time()),
                states=StatesStore(model, settings.state_folder, max_bytes),
                responses=ResponsesStore(settings.state_bytes),
                metrics=Metrics(engine, model_id),
            )
        except BaseException:
            engine.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._running = running
                return running
        engine.close()
        return None
