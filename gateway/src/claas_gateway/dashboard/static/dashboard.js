// Keeps an open page up to date: the server says what changed, the page is fetched again, and the parts that differ are
// replaced. Without this script the page reloads itself.

const body = document.body;
const live = document.querySelector("[data-live-state]");
const liveText = document.querySelector("[data-live-text]");
const announce = document.querySelector("[data-announce]");

// Many pages hear of a change at the same moment; they don't all ask at once.
const SPREAD_MILLISECONDS = 500;
const REST_MILLISECONDS = 1000;
const SLOW_MILLISECONDS = 60_000;
const EXPECTING_MILLISECONDS = 10_000;

function tell(state, text) {
  live.dataset.liveState = state;
  liveText.textContent = text;
}

function age(then) {
  const passed = Math.floor((Date.now() - then) / 1000);
  if (passed < 0) return "just now";
  if (passed < 60) return `${passed} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 172_800) return `${Math.floor(passed / 3600)} h ago`;
  return `${Math.floor(passed / 86_400)} days ago`;
}

function tellAges(root = document) {
  for (const each of root.querySelectorAll("[data-ago]")) each.textContent = age(Date.parse(each.dataset.ago));
}

// Ages differ from second to second; they are no change.
function likeness(element) {
  const copy = element.cloneNode(true);
  for (const each of copy.querySelectorAll("[data-ago]")) each.textContent = "";
  for (const each of copy.querySelectorAll("details")) each.removeAttribute("open");
  for (const each of copy.querySelectorAll(".fresh")) each.classList.remove("fresh");
  return copy.innerHTML;
}

function placeOf(element, region) {
  const kind = element.tagName;
  const href = element.getAttribute("href");
  const alike = [...region.querySelectorAll(kind)].filter((each) => each.getAttribute("href") === href);
  return { kind, href, index: alike.indexOf(element) };
}

function focusAgain(region, { kind, href, index }) {
  const alike = [...region.querySelectorAll(kind)].filter((each) => each.getAttribute("href") === href);
  (alike[index] ?? alike[0])?.focus({ preventScroll: true });
}

// What a screen reader should say of a region.
function sentences(region) {
  const inside = [...region.querySelectorAll("[data-says]")].map((each) => each.dataset.says);
  return region.dataset.says === undefined ? inside : [region.dataset.says, ...inside];
}

function replace(old, fresh) {
  const focused = old.contains(document.activeElement) ? placeOf(document.activeElement, old) : null;
  const open = new Map([...old.querySelectorAll("details[data-keep]")].map((each) => [each.dataset.keep, each.open]));
  for (const each of fresh.querySelectorAll("details[data-keep]")) {
    if (open.has(each.dataset.keep)) each.open = open.get(each.dataset.keep);
  }
  const before = sentences(old);
  const said = sentences(fresh).filter((each) => !before.includes(each));
  const rows = new Set([...old.querySelectorAll("tbody tr")].map(likeness));
  for (const row of fresh.querySelectorAll("tbody tr")) {
    if (!rows.has(likeness(row))) row.classList.add("fresh");
  }
  old.replaceChildren(...fresh.childNodes);
  if (fresh.dataset.says !== undefined) old.dataset.says = fresh.dataset.says;
  if (focused) focusAgain(old, focused);
  return said;
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { "X-Claas-Fragment": "1" }, cache: "no-store" });
  if (answer.redirected || answer.status === 401) {
    location.reload();
    return;
  }
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const said = [];
  for (const region of document.querySelectorAll("main [data-live]")) {
    const match = fresh.querySelector(`[data-live="${region.dataset.live}"]`);
    if (match && likeness(region) !== likeness(match)) said.push(...replace(region, match));
  }
  tellAges();
  const made = document.querySelector('[data-live="made"] time');
  const now = new Date();
  made.dateTime = now.toISOString();
  made.textContent = now.toISOString().slice(0, 19).replace("T", " ");
  if (said.length) announce.textContent = said.join(" ");
}

let due = null;
let busy = false;
let again = false;

function soon(delay = Math.random() * SPREAD_MILLISECONDS) {
  if (busy) {
    again = true;
    return;
  }
  if (due !== null) return;
  due = setTimeout(async () => {
    due = null;
    busy = true;
    try {
      await refresh();
    } catch {
      tell("lost", "connection lost");
    }
    await new Promise((done) => setTimeout(done, REST_MILLISECONDS));
    busy = false;
    if (again) {
      again = false;
      soon();
    }
  }, delay);
}

let source = null;
let wasLost = false;

function listen() {
  if (source || !body.dataset.events) return;
  source = new EventSource(body.dataset.events);
  source.addEventListener("ready", () => {
    tell("on", "live");
    if (wasLost) soon();
    wasLost = false;
  });
  source.addEventListener("changed", () => soon());
  source.addEventListener("error", () => {
    wasLost = true;
    tell("lost", "connection lost");
    if (source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(listen, 10_000);
    }
  });
}

// A browser opens few connections to one server: pages in the background give theirs up.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    source = null;
    wasLost = true;
    tell("off", "paused");
  } else {
    listen();
  }
});

setInterval(() => {
  if (!document.hidden) tellAges();
}, 10_000);
setInterval(() => {
  if (!document.hidden) soon();
}, SLOW_MILLISECONDS);
setInterval(() => {
  if (!document.hidden && document.querySelector("[data-expects]")) soon();
}, EXPECTING_MILLISECONDS);

// A point of the chart leads to its version, as the link in the table does.
document.addEventListener("click", (event) => {
  const version = event.target.closest?.("circle[data-version]")?.dataset.version;
  const place = event.target.closest?.("[data-place]")?.dataset.place;
  if (version !== undefined && place) location.assign(place + version);
});

const THEMES = ["auto", "light", "dark"];
const themeSwitch = document.querySelector("[data-theme-switch]");

function showTheme() {
  themeSwitch.textContent = `Theme: ${document.documentElement.dataset.theme ?? "auto"}`;
}

themeSwitch.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  const age = next === "auto" ? 0 : 31_536_000;
  document.cookie = `claas-theme=${next}; Path=${themeSwitch.dataset.path}; Max-Age=${age}; SameSite=Strict`;
  showTheme();
});
themeSwitch.hidden = false;
showTheme();
tellAges();
tell("off", "connecting");
if (!document.hidden) listen();
