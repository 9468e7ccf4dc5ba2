"""Search as a service: HTTP around one collection, on the run that is live.

settings    what the operator allows
guards      what every request has to pass: host, token, size, time; and what every answer carries
admission   how many are worked on at once
live        the run that is searched; a switch of the collection shows here, whole
other_runs  those that are not live, for who asks for one by its name
encoding    queries of many at once through one model
urls        a file that is searched by its address, fetched so that it leads nowhere else
requests    what a search may say, as JSON or as a form
files       media by ranges, thumbnails
overview    what the collection holds, its runs and its map
metrics     what Prometheus asks for
connection  what a silent client may hold, and how long
app         the routes;  server runs it,  deployment runs it on Ray Serve;  client asks it
page/       the page
"""
