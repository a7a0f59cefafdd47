// Keeps the page up to date: every event makes it fetch itself once, at most every second.
"use strict";
(() => {
  let waiting = false;
  const refresh = async () => {
    const answer = await fetch("/", { headers: { Accept: "text/html" } });
    if (answer.redirected) { location.assign(answer.url); return; }
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    const live = document.getElementById("live");
    if (!fresh || !live || live.contains(document.activeElement)) return;
    live.replaceWith(document.importNode(fresh, true));
    document.title = page.title;
  };
  const soon = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; refresh().catch(() => {}); }, 1000);
  };
  const events = new EventSource("/api/v1/events");
  for (const kind of ["state", "phase", "progress", "hello"]) events.addEventListener(kind, soon);
  setInterval(soon, 15000);
})();
