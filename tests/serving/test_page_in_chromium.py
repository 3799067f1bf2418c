# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium, against a tiny model."""

import shutil

import pytest
import served_address
import serving_models

playwright = pytest.importorskip(
  'playwright.sync_api', reason='playwright is not installed'
)
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium'),
]


def _check_tree(page):
  """Chooses runs with the keyboard until one has a branch, and looks at it."""
  page.focus('.run >> nth=0')
  for _ in range(page.locator('.run').count()):
    page.keyboard.press('Enter')
    label = page.get_attribute('.run.picked', 'aria-label')
    count = int(label.removesuffix(' tokens').rpartition(' ')[2])
    nodes = page.locator('#tree circle')
    assert 1 < nodes.count() <= serving_models.TREE.num_nodes
    assert page.locator('#tree line').count() == nodes.count() - 1
    # The root, and what was accepted.
    assert page.locator('#tree circle.accepted').count() == count
    branch = page.locator('#tree line.accepted')
    assert branch.count() == count - 1
    if count > 1:
      assert 'was accepted (bold)' in page.text_content('#tree-about')
      # For who sees no colours.
      assert _width(page, 'line.accepted') > _width(page, 'line:not(.accepted)')
      return
    assert 'none was accepted' in page.text_content('#tree-about')
    page.keyboard.press('Tab')
  pytest.fail('no step accepted a draft')


def _width(page, selector):
  """Of a line as it is drawn; the page's policy forbids to ask in it."""
  session = page.context.new_cdp_session(page)
  for domain in ('DOM', 'CSS'):
    session.send(f'{domain}.enable')
  root = session.send('DOM.getDocument')['root']['nodeId']
  found = session.send(
    'DOM.querySelector', {'nodeId': root, 'selector': selector}
  )
  node = {'nodeId': found['nodeId']}
  style = session.send('CSS.getComputedStyleForNode', node)['computedStyle']
  [width] = (one['value'] for one in style if one['name'] == 'stroke-width')
  return float(width.removesuffix('px'))


def test_the_page():
  engine = serving_models.engine()
  with (
    served_address.served(engine) as address,
    playwright.sync_playwright() as driver,
  ):
    browser = driver.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox']
    )
    page = browser.new_page(viewport={'width': 400, 'height': 800})
    # The server's thread compiles once more, on however slow a machine.
    page.set_default_timeout(300_000)
    said, asked = [], []
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector('#model option:nth-child(5)', state='attached')
    page.select_option('#kind', 'text')
    page.select_option('#model', 'tuned')
    page.fill('#limit', '20')
    page.fill('#prompt', 'ab')
    page.press('#prompt', 'Control+Enter')
    page.wait_for_selector('#off-about:has-text("ended")')
    page.wait_for_selector('#send:not([disabled])')
    texts = [page.text_content(f'#{side}-text') for side in ('on', 'off')]
    assert texts[0] == texts[1] and texts[0].startswith('ab')
    assert 'drafts off: mean acceptance length 1.00' in page.text_content(
      '#means'
    )
    _check_tree(page)
    # The policy of the page forbids to evaluate an expression in it.
    session = page.context.new_cdp_session(page)
    size = session.send('Page.getLayoutMetrics')['cssContentSize']
    assert size['width'] <= 400
    assert said == [] and all(url.startswith(address) for url in asked)
    page.fill('#limit', '9999')
    page.fill('#prompt', 'ab')
    page.click('#send')
    page.wait_for_selector('#error:has-text("9999")')
    browser.close()
