"""The topics of the demo."""

import bus

orders = bus.topic("orders", partitions=8, retention="7d")
"""Order lines of a shop; key: the product (StockCode)."""

stock_alerts = bus.topic("stock-alerts", partitions=2, retention="7d")
"""A product has fallen below the stock at which more is bought; key: the product."""

page_views = bus.topic("page-views", partitions=4, retention="1d")
"""Somebody looked at a product in the web shop; key: the product."""
