/* Keeps the live region of a page fresh: asks every two seconds, changes only what differs, keeps focus,
   scroll and opened rows. Stops while the tab is hidden; asks more rarely while there is no answer. */
"use strict";

(() => {
  const EVERY = 2000;
  const SLOWEST = 10000;
  const region = document.querySelector("[data-jt-live]");
  const status = document.querySelector("[data-jt-status]");
  const button = document.querySelector("[data-jt-pause]");
  if (!region) return;

  let etag = "";
  let failures = 0;
  let timer = 0;
  let stopped = false;
  let asking = false;

  /* ---- change one tree into another, node by node */

  const keyOf = (node) => (node.nodeType === 1 && node.dataset.jtKey) || "";

  function morph(node, fresh) {
    if (node.nodeName !== fresh.nodeName) return node.replaceWith(fresh);
    if (node.nodeType !== 1) {
      if (node.data !== fresh.data) node.data = fresh.data;
      return undefined;
    }
    for (const { name } of [...node.attributes]) {
      if (name !== "open" && !fresh.hasAttribute(name)) node.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
    return morphChildren(node, fresh);
  }

  function morphChildren(node, fresh) {
    const known = new Map([...node.children].filter(keyOf).map((child) => [keyOf(child), child]));
    const wanted = new Set([...fresh.children].map(keyOf));
    let at = node.firstChild;
    for (const next of [...fresh.childNodes]) {
      const key = keyOf(next);
      while (at && (key ? !wanted.has(keyOf(at)) : keyOf(at) && !wanted.has(keyOf(at)))) {
        const gone = at;
        at = at.nextSibling;
        gone.remove();
      }
      const match = key ? known.get(key) : at && !keyOf(at) && at;
      if (!match) {
        node.insertBefore(next, at);
      } else {
        if (match === at) at = at.nextSibling;
        else node.insertBefore(match, at);
        morph(match, next);
      }
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  }

  function show(html) {
    const focused = document.activeElement;
    const fresh = new DOMParser().parseFromString(`<div>${html}</div>`, "text/html").body.firstChild;
    morphChildren(region, fresh);
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }

  /* ---- rates, from counters a few looks apart */

  const samples = new Map();

  function rates() {
    const now = performance.now();
    for (const cell of region.querySelectorAll("[data-jt-count]")) {
      const name = cell.dataset.jtRate;
      const seen = (samples.get(name) || []).filter(([, time]) => now - time < 6 * EVERY);
      const count = Number(cell.dataset.jtCount);
      const [first, since] = seen[0] || [count, now];
      samples.set(name, [...seen, [count, now]]);
      if (now - since < EVERY / 2 || count < first) continue;
      const rate = ((count - first) * 1000) / (now - since);
      cell.textContent = rate.toLocaleString(document.documentElement.lang, {
        maximumFractionDigits: rate > 0 && rate < 10 ? 1 : 0,
      });
    }
  }

  /* ---- asking */

  function say(state) {
    const text = status.dataset[state];
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = state;
    button.textContent = stopped ? button.dataset.resume : button.dataset.pause;
  }

  function later() {
    clearTimeout(timer);
    if (stopped || document.hidden) return;
    timer = setTimeout(ask, Math.min(EVERY * 2 ** failures, SLOWEST) * (0.95 + Math.random() / 10));
  }

  async function ask() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    try {
      const response = await fetch(region.dataset.jtLive, {
        headers: { "If-None-Match": etag, "X-Requested-With": "fetch" },
        cache: "no-store",
        signal: AbortSignal.timeout(15000),
      });
      if (response.redirected || response.status === 403) {
        stopped = true;
        return say("ended");
      }
      if (!response.headers.has("X-Jitney-Region")) throw new Error(`status ${response.status}`);
      etag = response.headers.get("ETag") || "";
      if (response.status !== 304) show(await response.text());
      failures = response.status < 400 ? 0 : failures + 1;
      if (failures) samples.clear();
      else rates();
      if (!stopped) say(failures ? "away" : "live");
    } catch {
      failures += 1;
      samples.clear();
      if (!stopped) say("away");
    } finally {
      asking = false;
      later();
    }
    return undefined;
  }

  function resume() {
    failures = 0;
    samples.clear();
    rates();
    ask();
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else if (!stopped) resume();
  });
  button.addEventListener("click", () => {
    stopped = !stopped;
    say(stopped ? "paused" : "live");
    if (stopped) clearTimeout(timer);
    else resume();
  });
  button.hidden = false;
  say(region.querySelector("[role=alert]") ? "away" : "live");
  rates();
  later();
})();
