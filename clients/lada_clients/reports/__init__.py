"""Pages and documents for people: charts, web pages, reports of an audit."""
