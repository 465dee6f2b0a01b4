"""For those who surround everything of a kind: tracing, logging, tenants, metrics, checks.

    class Tenants(Interceptor):
        async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
            call.headers["tenant"] = current_tenant.get()
            return await proceed(call)

        async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
            current_tenant.set(call.headers["tenant"])
            return await proceed(call)

    interceptors = [Tenants()]

Clients take them as ``Client.connect(dsn, interceptors=...)``, workers from the list that the app's
module calls ``interceptors`` (or ``Worker(..., interceptors=...)``).
"""

from durable.engine.interceptors import (
    ActivityCall,
    HandlerCall,
    Interceptor,
    MessageCall,
    Proceed,
    RunCall,
    StartCall,
)

__all__ = [
    "ActivityCall",
    "HandlerCall",
    "Interceptor",
    "MessageCall",
    "Proceed",
    "RunCall",
    "StartCall",
]
