// A text area for code: line numbers, indentation, and a way out for the keyboard.

/** Make `area` an editor with its line numbers in `gutter`; `indent()` gives the unit of indentation. */
export function edit(area, gutter, { indent }) {
  let isLeaving = false;
  let count = 1;

  function number() {
    const lines = area.value.split('\n').length;
    if (lines !== count) {
      count = lines;
      gutter.textContent = Array.from({ length: lines }, (_, at) => at + 1).join('\n');
    }
    gutter.scrollTop = area.scrollTop;
  }

  function insert(text) {
    // The only way that keeps the browser's undo; where it is missing, the text still gets in.
    if (!document.execCommand?.('insertText', false, text)) {
      area.setRangeText(text, area.selectionStart, area.selectionEnd, 'end');
      area.dispatchEvent(new Event('input', { bubbles: true }));
    }
  }

  function shift(isBack) {
    const { value, selectionStart, selectionEnd } = area;
    if (!isBack && selectionStart === selectionEnd) {
      insert(indent());
      return;
    }
    const from = value.lastIndexOf('\n', selectionStart - 1) + 1;
    const lines = value.slice(from, selectionEnd).split('\n');
    const moved = lines.map((line) => {
      if (!isBack) return line && indent() + line;
      return line.startsWith('\t') ? line.slice(1) : line.replace(new RegExp(`^ {1,${indent().length}}`), '');
    }).join('\n');
    if (moved === lines.join('\n')) return;
    area.setSelectionRange(from, selectionEnd);
    insert(moved);
    area.setSelectionRange(from, from + moved.length);
  }

  area.addEventListener('keydown', (event) => {
    const wasLeaving = isLeaving;
    isLeaving = event.key === 'Escape' || (wasLeaving && event.key === 'Shift');
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === 'Tab' && !wasLeaving) {
      event.preventDefault();
      shift(event.shiftKey);
    } else if (event.key === 'Enter' && !event.shiftKey) {
      const line = area.value.slice(area.value.lastIndexOf('\n', area.selectionStart - 1) + 1, area.selectionStart);
      event.preventDefault();
      insert('\n' + line.match(/^[ \t]*/)[0] + (/[:{([]\s*$/.test(line) ? indent() : ''));
    }
  });
  area.addEventListener('blur', () => { isLeaving = false; });
  area.addEventListener('input', number);
  area.addEventListener('scroll', () => { gutter.scrollTop = area.scrollTop; });
  return { set(text) { area.value = text; area.scrollTop = 0; number(); } };
}
