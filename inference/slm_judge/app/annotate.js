// Annotating: one item at a time, by keyboard. Every choice is sent at once, one after the other;
// the page goes to another item when all of them are kept.
import { $, ask, described, h, percent, plain, say, texts, tried } from "./page.js";

export function annotate(start) {
  const { fields, dimensions } = start.rubric;
  const said = $("annotate-said");
  const byName = Object.fromEntries(dimensions.map((d) => [d.name, d]));
  let annotator = localStorage.annotator ?? "";
  let item = null; // what is shown
  let answers = {};
  let active = 0; // question that the number keys answer
  let digits = "";
  let since = 0; // when the last answer was given, or the item shown
  let busy = false;
  let sent = Promise.resolve();
  let waiting = 0; // answers that were sent, and are not known to be kept

  /** Which questions apply, as `Rubric.asked` has it: "cannot tell" keeps none from being asked. */
  function applying() {
    const found = {};
    for (const { name, ask_if } of dimensions) {
      found[name] = Object.entries(ask_if).every(([earlier, keys]) => found[earlier]
        && ((answers[earlier] ?? null) === null || keys.includes(answers[earlier])));
    }
    return found;
  }

  /** The place of the first open question behind `after`, or -1. */
  function open(after = -1) {
    const applies = applying();
    return dimensions.findIndex((d, i) => i > after && applies[d.name] && !(d.name in answers));
  }

  function hide() {
    const applies = applying();
    for (const set of sets()) set.hidden = !applies[set.dataset.dimension];
  }

  const sets = () => [...$("questions").children];

  function show(found, focus = true) {
    const { own, done, total } = found.progress;
    $("progress").max = Math.max(total, 1);
    $("progress").value = own;
    $("count").textContent = `${own} of ${total} answered by you, ${done} have enough answers`;
    $("undo").disabled = own === 0 && !Object.keys(found.item?.answers ?? {}).length;
    $("next").disabled = !found.item;
    item = found.item;
    answers = { ...item?.answers };
    since = performance.now();
    digits = "";
    $("questions").replaceChildren();
    if (!item) {
      $("item").replaceChildren();
      say(said, total ? "There is nothing left for you to annotate. Thank you."
        : "There are no items.");
      return;
    }
    $("item").replaceChildren(h("h2", {}, "Item ", h("bdi", { id: "item-id" }, item.id)),
      ...texts(fields, item.state));
    $("questions").append(...dimensions.map(asked));
    hide();
    judged(item.judge);
    activate(Math.max(open(), 0));
    if (focus) $("item").focus();
  }

  function asked(dimension, place) {
    const option = (value, key, ...label) => h("label", { className: "option" },
      h("input", { type: "radio", name: dimension.name, value, checked: answers[dimension.name] === (value || null) &&
        dimension.name in answers }), h("kbd", {}, key), h("span", {}, ...label));
    const wide = dimension.options.length > 9 ? 2 : 1;
    const set = h("fieldset", { tabIndex: -1, "data-dimension": dimension.name },
      h("legend", { dir: "auto" }, dimension.instructions),
      dimension.options.map((one, i) => option(one.key, String(i + 1).padStart(wide, "0"), described(one, dimension))),
      option("", "c", "cannot tell"), h("p", { className: "soft judge" }));
    set.addEventListener("change", (event) => choose(place, event.target.value || null));
    set.addEventListener("focusin", () => activate(place));
    return set;
  }

  function judged(judge) {
    for (const set of sets()) {
      const one = judge?.[set.dataset.dimension];
      set.querySelector(".judge").textContent = !judge ? ""
        : one?.option ? `The judge: ${plain(one.option, byName[set.dataset.dimension])} (${percent(one.confidence)} sure)`
          : `The judge gave no answer${one?.problem ? `: ${one.problem}` : ""}`;
    }
  }

  function activate(place) {
    if (place !== active) digits = "";
    active = place;
    sets().forEach((set, i) => {
      set.classList.toggle("active", i === place);
      if (i === place) set.setAttribute("aria-current", "step");
      else set.removeAttribute("aria-current");
    });
  }

  function choose(place, option) {
    const { name } = dimensions[place];
    const [id, now] = [item.id, performance.now()];
    const body = { annotator, item: id, dimension: name, option, seconds: (now - since) / 1000 };
    since = now;
    const before = applying();
    answers[name] = option;
    check(place);
    reopen(before);
    waiting += 1;
    sent = sent.then(() => ask("answer", body)).finally(() => { waiting -= 1; }).then((found) => {
      if (item?.id !== id) return;
      judged(found.judge);
      $("undo").disabled = false;
      if (!waiting) say(said, open() < 0 ? "All answers are kept. Enter goes on." : "Kept.");
    }).catch((error) => {
      if (item?.id !== id || answers[name] !== option) return;
      const earlier = applying();
      delete answers[name];
      check(place);
      reopen(earlier);
      activate(place);
      say(said, `This answer may be lost, give it again: ${error.message}`, true);
    });
  }

  function check(place) {
    const { name } = dimensions[place];
    sets()[place].querySelectorAll("input").forEach((input) => {
      input.checked = name in answers && input.value === (answers[name] ?? "");
    });
  }

  /** Questions that did not apply `before` and now do are open: what `leave` kept is no answer. */
  function reopen(before) {
    const applies = applying();
    dimensions.forEach(({ name }, place) => {
      if (before[name] || !applies[name] || answers[name] !== null) return;
      delete answers[name];
      check(place);
    });
    hide();
  }

  /** Keep for questions that do not apply that they have no answer, so that the item is done. */
  async function leave() {
    const [applies, { id }] = [applying(), item];
    for (const { name } of dimensions) {
      if (applies[name] || answers[name] === null) continue;
      await ask("answer", { annotator, item: id, dimension: name, option: null, seconds: 0 });
      answers[name] = null;
    }
  }

  /** To the next open question; from the last one, to the next item. */
  async function goOn() {
    if (!item || busy) return;
    busy = true;
    try {
      await sent;
      if (open() >= 0) {
        sets()[open()].focus();
        if (said.className !== "error") say(said, "This question is open.");
        return;
      }
      await tried(said, async () => {
        await leave();
        const found = await ask("next", { annotator });
        say(said, "");
        show(found);
      });
    } finally {
      busy = false;
    }
  }

  async function change(name) {
    if (busy) return;
    busy = true;
    await sent;
    await tried(said, async () => {
      const found = await ask(name, { annotator });
      say(said, name === "undo" ? "The last answer is taken back." : "");
      show(found);
    });
    busy = false;
  }

  function key(event) {
    if ($("annotate").hidden || $("work").hidden || busy || event.repeat) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=radio]), textarea, select")) return;
    const pressed = event.key.toLowerCase(); // whatever Caps Lock is
    if (pressed === "u") change("undo");
    else if (!item) return;
    else if (pressed === "enter" && !event.target.matches("button, a, summary")) goOn();
    else if (pressed === "c") pick(null);
    else if (/^[0-9]$/.test(pressed)) digit(pressed);
    else return;
    event.preventDefault();
  }

  function digit(one) {
    const { options } = dimensions[active];
    digits += one;
    if (digits.length < (options.length > 9 ? 2 : 1)) {
      say(said, `${digits}_ : one more digit`);
      return;
    }
    const option = options[Number(digits) - 1];
    say(said, option ? "" : `There is no option ${digits}.`, !option);
    digits = "";
    if (option) pick(option.key);
  }

  function pick(option) {
    choose(active, option);
    const next = open(active);
    if (next >= 0) sets()[next].focus();
    else if (open() >= 0) sets()[open()].focus();
  }

  function named() {
    $("name-form").hidden = Boolean(annotator);
    $("work").hidden = !annotator;
    $("who").textContent = annotator;
    if (annotator) change("next");
    else $("annotator").focus();
  }

  $("task").open = matchMedia("(min-width: 48rem)").matches;
  $("task").hidden = !start.rubric.instructions;
  $("task-text").textContent = start.rubric.instructions;
  $("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    annotator = $("annotator").value.trim();
    if (!annotator) return;
    localStorage.annotator = annotator;
    named();
  });
  $("rename").addEventListener("click", () => { annotator = ""; item = null; named(); });
  $("undo").addEventListener("click", () => change("undo"));
  $("next").addEventListener("click", goOn);
  $("questions").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", key);
  return () => { if (!item) named(); };
}
